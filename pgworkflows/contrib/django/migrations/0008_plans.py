from django.db import migrations

from pgworkflows.contrib.django.operations import Apply


class Migration(migrations.Migration):
    dependencies = [("pgworkflows", "0007_roles")]
    operations = [Apply("0008_plans")]
