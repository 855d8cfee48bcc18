from django.db import migrations

from pgworkflows.contrib.django.operations import Apply


class Migration(migrations.Migration):
    initial = True
    operations = [Apply("0001_initial")]
